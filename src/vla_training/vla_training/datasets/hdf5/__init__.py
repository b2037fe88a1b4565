"""HDF5 datasets: robomimic's layout and ALOHA's."""
