"""Bundles on devices that are reached by SSH: OpenSSH's own client, its configuration, keys and known hosts."""
