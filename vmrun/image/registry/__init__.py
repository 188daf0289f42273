"""A client of the OCI distribution protocol: finding, pulling and pushing images."""
