"""Where data is kept: the offline store of Parquet partitions and the online store in Redis."""
