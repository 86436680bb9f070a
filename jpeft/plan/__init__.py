"""What a run needs of a device, told by that device's own compiler, with no such device at hand."""
