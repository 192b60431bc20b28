"""Object stores behind one interface, one file for each provider."""
