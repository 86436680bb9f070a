"""PEFT methods as small modules attached to the sites of a frozen T5: one file per method, and what they share."""
