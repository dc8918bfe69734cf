"""What a device does: calibrated profiles, and memory plans by compilation without the device."""
