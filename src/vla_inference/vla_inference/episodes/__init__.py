"""Episodes on disk, in the HDF5 layout that simulation and training share."""
