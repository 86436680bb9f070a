"""Many adapters of one base at once: a bank of them on the device, and a server over HTTP that answers from it."""
