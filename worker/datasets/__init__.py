"""Jobs on data sets: arrays (.npy, .npz), tables (.parquet, .arrow, .feather, .csv, .tsv) and zips of these."""
