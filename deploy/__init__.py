"""What runs on a device: the bundle, sessions over one runtime, and every error a user can fix."""
