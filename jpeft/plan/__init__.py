"""Plans the memory and time of a run on a device, with that device's own compiler and without the device."""
