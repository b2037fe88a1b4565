"""HDF5 datasets: robomimic's layout, ALOHA's."""
