"""Pretraining a T5 on a custom corpus: span corruption mixed with instruction pairs."""
