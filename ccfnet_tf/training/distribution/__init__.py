"""Distribution over devices and machines, and collectives between workers."""
