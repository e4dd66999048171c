"""`ccfnet-tf benchmark`: speed, memory and cost of networks on this machine."""
