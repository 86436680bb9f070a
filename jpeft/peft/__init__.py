"""PEFT methods as small modules attached to the sites of a frozen model: one file per method, and what they share."""
