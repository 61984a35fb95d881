"""What can be known to be wrong before torch is imported: paths, folders of models, devices, servers.

Each check stands in a file of its own; what takes a model, a network or minutes to find out is not asked here.
"""
