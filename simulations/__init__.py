"""Many virtual sites on one machine, through the client's and the server's own code."""
