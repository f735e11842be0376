"""This process among those of its launch, as torchrun and accelerate tell it; its share of the machine."""

import os
from datetime import timedelta
from pathlib import Path

GPU = Path("/dev/nvidia0")


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Processes of the launch on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """Processor cores for this process's workers; the processes of a machine share what there is."""
    return max(1, len(os.sched_getaffinity(0)) // local_world_size())


def device():
    """The ``torch.device`` of this process: the GPU of its rank on this machine, else the CPU.

    Raises:
        ValueError: if there is a GPU that PyTorch cannot use: no run should be on the CPU by mistake.
    """
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if torch.version.cuda is not None and GPU.exists() and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
        raise ValueError(
            f"there is a GPU ({GPU}), but PyTorch {torch.__version__} cannot use it; install a driver for "
            f"CUDA {torch.version.cuda}, or a PyTorch for the driver, or set CUDA_VISIBLE_DEVICES= to use "
            "the CPU"
        )
    return torch.device("cpu")


def accelerator(**options):
    """The processes of this launch and their devices, as ``accelerate.Accelerator(**options)``.

    Raises:
        ValueError: for a launch of a kind that a run cannot be part of.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import DistributedType

    # Ranks wait while one grades, saves or loads; ten minutes, the default, may be too few.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    # No buffer changes; sent round in a forward pass that not all ranks make, they would be waited for.
    unsent = DistributedDataParallelKwargs(broadcast_buffers=False)
    made = Accelerator(cpu=device().type == "cpu", kwargs_handlers=[patience, unsent], **options)
    kind = made.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise ValueError(
            f"distributed_type: {kind.value} of accelerate's configuration; every rank holds the whole model "
            "here: launch with torchrun, or by recipes/accelerate/8-gpu-ddp.yaml"
        )
    if made.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps: {made.gradient_accumulation_steps} of accelerate's configuration "
            "(ACCELERATE_GRADIENT_ACCUMULATION_STEPS) would divide every gradient; unset it, and set "
            "train.microbatch_size for memory"
        )
    if made.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision: {made.mixed_precision!r} of accelerate's configuration; set it to 'no' there "
            "(or --mixed_precision no) and model.bf16=true in the run's"
        )
    return made


def set_up(device, in_16_bits: bool) -> None:
    """Switches of CUDA for the whole process; nothing on the CPU.

    Attention by cuDNN, the default on Hopper and Blackwell, may give gradients that are not finite where a
    mask is given (https://github.com/pytorch/pytorch/issues/196678), and builds a plan for each length that
    it has not seen (https://github.com/pytorch/pytorch/issues/190388), of which denoising has one a step.
    Beside weights in 16 bits an adapter is computed in float32, by default at a fifteenth of their speed:
    TF32 has the range of float32 and more digits than they have.
    """
    import torch

    if device.type != "cuda":
        return
    torch.backends.cuda.enable_cudnn_sdp(False)
    if in_16_bits:
        torch.set_float32_matmul_precision("high")
