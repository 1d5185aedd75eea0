"""Networks that stand on a backbone, one file each, with what others call their tensors; and the
kernel of their losses. They know no batches and no tokenizers."""
