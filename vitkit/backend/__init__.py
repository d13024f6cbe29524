"""Arrays and devices: the only part of vitkit, besides the CUDA kernels, that knows CuPy."""

from vitkit.backend.cuda import CudaStatus as CudaStatus
from vitkit.backend.cuda import compute_capability as compute_capability
from vitkit.backend.cuda import cuda_status as cuda_status
from vitkit.backend.modules import Backend as Backend
from vitkit.backend.modules import Recording as Recording
from vitkit.backend.modules import array_module as array_module
from vitkit.backend.modules import backend_of as backend_of
from vitkit.backend.modules import can_record as can_record
from vitkit.backend.modules import erf as erf
from vitkit.backend.modules import known_backends as known_backends
from vitkit.backend.modules import memory_left as memory_left
from vitkit.backend.modules import record as record
from vitkit.backend.modules import register_backend as register_backend
from vitkit.backend.modules import release_memory as release_memory
from vitkit.backend.modules import synchronize as synchronize
from vitkit.backend.modules import to_numpy as to_numpy
from vitkit.backend.modules import uploader as uploader
from vitkit.backend.random import philox as philox
from vitkit.backend.types import Array as Array
from vitkit.backend.types import ArrayModule as ArrayModule
