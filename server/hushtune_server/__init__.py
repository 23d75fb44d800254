"""Owner, coordinator, air, eavesdropper and the testbed."""
