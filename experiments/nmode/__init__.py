"""*nmode*: nmODE, its tables and figures."""
