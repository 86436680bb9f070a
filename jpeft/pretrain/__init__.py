"""Pretraining a T5 on a corpus of one's own: span corruption mixed with instruction pairs."""
