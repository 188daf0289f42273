"""Reading which packages an image holds, from the records that package managers leave in it."""
