"""The zstd dictionary of short indexes of packed files: what they all say, so that it need not be stored. Part of the format (docs/packed.md): a changed
byte makes files unreadable."""

from __future__ import annotations

LINES = (
    b'{"kind":"tensors","files":[{"path":"tokenizer.json","size":466247,"sha256":"0123456789abcdef"},{"path":"config.json","size":612,"sha256":"',
    b'"}],"rest":"modelpress.rest","shards":[{"path":"model-00001-of-00002.safetensors"},{"path":"pytorch_model.safetensors"},{"path":"model.safetensors"',
    b',"metadata":{"format":"pt"}}],"shard_index":"model.safetensors.index.json","tensors":[{"name":"conv1.weight","payload":"conv1.weight","shard":0,',
    b'"dtype":"BF16","shape":[64,3,3,3],"quantized":{"type":"int","num_bits":8,"rows":64,"columns":27,"transposed":true,"group_size":128,"scale_dtype":"F32",',
    b'"scale_shape":[64,1],"sections":[1760,268],"step":0}},{"name":"fc1.bias","size":92,"shard":0,"dtype":"I64","shape":[]},{"name":"fc1.bias","size":212,',
    b'"shard":0,"dtype":"F16","shape":[100]},{"name":"fc2.weight","shard":0,"dtype":"F32","shape":[10,100],"quantized":{"type":"codebook","num_bits":4,',
    b'"rows":10,"columns":100,"group_size":100,"levels_dtype":"F16","levels_shape":[1,16],"sections":[253,44],"step":0}},{"name":"fc2.bias","size":52,',
    b'"shard":0,"dtype":"F32","shape":[10]}],"aliases":{"lm_head.weight":"model.embed_tokens.weight"},"bundle":"modelpress.bundle","steps":[{"targets":["*"',
    b'],"ignore":[],"method":"quantize","mapping":"uniform","num_bits":8,"avg_bits":null,"type":"int","symmetric":true,"strategy":"channel","group_size":128,',
    b'"scale_search":"mse","activations":"none","recover":null,"strict":false},{"targets":["*"],"ignore":[],"method":"quantize","mapping":"gradient",',
    b'"num_bits":4,"avg_bits":null,"type":"int","symmetric":true,"strategy":"tensor","group_size":null,"scale_search":"absmax","activations":"none",',
    b'"recover":{"steps":2000,"loss":"distill","learning_rate":0.001,"batch_size":32,"penalty":"none","lambda":0.0},"strict":false}]}',
)
DICTIONARY = b"".join(LINES)
