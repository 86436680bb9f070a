"""PEFT methods as small modules attached to the sites of a frozen T5. One file per method; `base` has what they share."""
