"""What FastVideo and nccl4py publish: every name of their reference pages, with its signature.

Types are written without their modules. nccl4py states its result without an arrow.
"""

from __future__ import annotations

SIGNATURES: dict[str, dict[str, str]] = {
    "fastvideo_dist.parallel_state": {
        "GraphCaptureContext": "",
        "GraphCaptureContext.stream": "attribute",
        "GroupCoordinator": (
            "(group_ranks: list[list[int]], local_rank: int, torch_distributed_backend: str "
            "| Backend, use_device_communicator: bool, use_message_queue_broadcaster: bool = "
            "False, group_name: str | None = None)"
        ),
        "GroupCoordinator.all_gather": "(input_: Tensor, dim: int = -1) -> Tensor",
        "GroupCoordinator.all_reduce": (
            "(input_: Tensor, op: ReduceOp | None = ReduceOp.SUM) -> Tensor"
        ),
        "GroupCoordinator.all_to_all_4D": (
            "(input_: Tensor, scatter_dim: int = 2, gather_dim: int = 1) -> Tensor"
        ),
        "GroupCoordinator.barrier": "() -> None",
        "GroupCoordinator.broadcast": "(input_: Tensor, src: int = 0)",
        "GroupCoordinator.broadcast_object": "(obj: Any | None = None, src: int = 0)",
        "GroupCoordinator.broadcast_object_list": (
            "(obj_list: list[Any], src: int = 0, group: ProcessGroup | None = None)"
        ),
        "GroupCoordinator.broadcast_tensor_dict": (
            "(tensor_dict: dict[str, Tensor | Any] | None = None, src: int = 0, group: "
            "ProcessGroup | None = None, metadata_group: ProcessGroup | None = None) -> "
            "dict[str, Tensor | Any] | None"
        ),
        "GroupCoordinator.cpu_group": "attribute",
        "GroupCoordinator.destroy": "() -> None",
        "GroupCoordinator.device_communicator": "attribute",
        "GroupCoordinator.device_group": "attribute",
        "GroupCoordinator.first_rank": "property",
        "GroupCoordinator.gather": "(input_: Tensor, dst: int = 0, dim: int = -1) -> Tensor | None",
        "GroupCoordinator.graph_capture": (
            "(graph_capture_context: GraphCaptureContext | None = None)"
        ),
        "GroupCoordinator.is_first_rank": "property",
        "GroupCoordinator.is_last_rank": "property",
        "GroupCoordinator.last_rank": "property",
        "GroupCoordinator.local_rank": "attribute",
        "GroupCoordinator.mq_broadcaster": "attribute",
        "GroupCoordinator.next_rank": "property",
        "GroupCoordinator.prev_rank": "property",
        "GroupCoordinator.rank": "attribute",
        "GroupCoordinator.rank_in_group": "attribute",
        "GroupCoordinator.ranks": "attribute",
        "GroupCoordinator.recv": "(size: Size, dtype: dtype, src: int | None = None) -> Tensor",
        "GroupCoordinator.recv_object": "(src: int) -> Any",
        "GroupCoordinator.recv_tensor_dict": (
            "(src: int | None = None, all_gather_group: GroupCoordinator | None = None) -> "
            "dict[str, Tensor | Any] | None"
        ),
        "GroupCoordinator.send": "(tensor: Tensor, dst: int | None = None) -> None",
        "GroupCoordinator.send_object": "(obj: Any, dst: int) -> None",
        "GroupCoordinator.send_tensor_dict": (
            "(tensor_dict: dict[str, Tensor | Any], dst: int | None = None, "
            "all_gather_group: GroupCoordinator | None = None) -> dict[str, Tensor | Any] | "
            "None"
        ),
        "GroupCoordinator.use_device_communicator": "attribute",
        "GroupCoordinator.world_size": "attribute",
        "TensorMetadata": "data",
        "all_reduce": "(tensor: Tensor, group_name: str) -> Tensor",
        "all_reduce_fake": "(tensor: Tensor, group_name: str) -> Tensor",
        "cleanup_dist_env_and_memory": "(shutdown_ray: bool = False)",
        "destroy_distributed_environment": "() -> None",
        "destroy_model_parallel": "() -> None",
        "get_dp_group": "() -> GroupCoordinator",
        "get_dp_rank": "() -> int",
        "get_dp_world_size": "() -> int",
        "get_local_torch_device": "() -> device",
        "get_sp_group": "() -> GroupCoordinator",
        "get_sp_parallel_rank": "() -> int",
        "get_sp_world_size": "() -> int",
        "get_tp_group": "() -> GroupCoordinator",
        "get_tp_rank": "() -> int",
        "get_tp_world_size": "() -> int",
        "get_world_group": "() -> GroupCoordinator",
        "get_world_rank": "() -> int",
        "get_world_size": "() -> int",
        "init_distributed_environment": (
            "(world_size: int = 1, rank: int = 0, distributed_init_method: str = 'env://', "
            "local_rank: int = 0, backend: str = 'nccl', device_id: device | None = None)"
        ),
        "init_model_parallel_group": (
            "(group_ranks: list[list[int]], local_rank: int, backend: str, "
            "use_message_queue_broadcaster: bool = False, group_name: str | None = None) -> "
            "GroupCoordinator"
        ),
        "init_world_group": "(ranks: list[int], local_rank: int, backend: str) -> GroupCoordinator",
        "initialize_model_parallel": (
            "(tensor_model_parallel_size: int = 1, sequence_model_parallel_size: int = 1, "
            "data_parallel_size: int = 1, backend: str | None = None) -> None"
        ),
        "initialize_sequence_parallel_group": (
            "(sequence_model_parallel_size: int = 1, backend: str | None = None, "
            "group_name_suffix: str = '') -> GroupCoordinator"
        ),
        "initialize_tensor_parallel_group": (
            "(tensor_model_parallel_size: int = 1, backend: str | None = None, "
            "group_name_suffix: str = '') -> GroupCoordinator"
        ),
        "is_the_same_node_as": (
            "(pg: ProcessGroup | StatelessProcessGroup, source_rank: int = 0) -> list[int]"
        ),
        "logger": "data",
        "maybe_init_distributed_environment_and_model_parallel": (
            "(tp_size: int, sp_size: int, distributed_init_method: str = 'env://')"
        ),
        "model_parallel_is_initialized": "() -> bool",
        "patch_tensor_parallel_group": "(tp_group: GroupCoordinator)",
        "set_custom_all_reduce": "(enable: bool)",
    },
    "fastvideo_dist.communication_op": {
        "sequence_model_parallel_all_gather": "(input_: Tensor, dim: int = -1) -> Tensor",
        "sequence_model_parallel_all_to_all_4D": (
            "(input_: Tensor, scatter_dim: int = 2, gather_dim: int = 1) -> Tensor"
        ),
        "tensor_model_parallel_all_gather": "(input_: Tensor, dim: int = -1) -> Tensor",
        "tensor_model_parallel_all_reduce": "(input_: Tensor) -> Tensor",
    },
    "fastvideo_dist.device_communicators.cuda_communicator": {
        "CudaCommunicator": (
            "(cpu_group: ProcessGroup, device: device | None = None, device_group: "
            "ProcessGroup | None = None, unique_name: str = '')"
        ),
        "CudaCommunicator.all_reduce": "(input_, op: ReduceOp | None = None)",
        "CudaCommunicator.destroy": "() -> None",
        "CudaCommunicator.recv": "(size: Size, dtype: dtype, src: int | None = None) -> Tensor",
        "CudaCommunicator.send": "(tensor: Tensor, dst: int | None = None) -> None",
    },
    "fastvideo_dist.device_communicators.pynccl": {
        "PyNcclCommunicator": (
            "(group: ProcessGroup | StatelessProcessGroup, device: int | str | device, "
            "library_path: str | None = None)"
        ),
        "PyNcclCommunicator.all_gather": (
            "(output_tensor: Tensor, input_tensor: Tensor, stream=None)"
        ),
        "PyNcclCommunicator.all_reduce": (
            "(in_tensor: Tensor, op: ReduceOp = ReduceOp.SUM, stream=None) -> Tensor"
        ),
        "PyNcclCommunicator.broadcast": "(tensor: Tensor, src: int, stream=None)",
        "PyNcclCommunicator.recv": "(tensor: Tensor, src: int, stream=None)",
        "PyNcclCommunicator.reduce_scatter": (
            "(output_tensor: Tensor, input_tensor: Tensor, op: ReduceOp = ReduceOp.SUM, "
            "stream=None)"
        ),
        "PyNcclCommunicator.send": "(tensor: Tensor, dst: int, stream=None)",
        "logger": "data",
    },
    "fastvideo_dist.nccl": {
        "Communicator.allreduce": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI, op: NcclRedOp | CustomRedOp, *, stream: Stream | "
            "cuda.core.typing.IsStreamType | int | None = None) None"
        ),
        "Communicator.broadcast": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI | Any, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI, root: int, *, stream: Stream | "
            "cuda.core.typing.IsStreamType | int | None = None) None"
        ),
        "Communicator.reduce": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI | Any, op: NcclRedOp | CustomRedOp, root: int | "
            "None = None, *, stream: Stream | cuda.core.typing.IsStreamType | int | None = "
            "None) None"
        ),
        "Communicator.allgather": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI, *, stream: Stream | cuda.core.typing.IsStreamType "
            "| int | None = None) None"
        ),
        "Communicator.reduce_scatter": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI, op: NcclRedOp | CustomRedOp, *, stream: Stream | "
            "cuda.core.typing.IsStreamType | int | None = None) None"
        ),
        "Communicator.alltoall": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI, *, stream: Stream | cuda.core.typing.IsStreamType "
            "| int | None = None) None"
        ),
        "Communicator.gather": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI | Any, root: int | None = None, *, stream: Stream "
            "| cuda.core.typing.IsStreamType | int | None = None) None"
        ),
        "Communicator.scatter": (
            "(sendbuf: Buffer | SupportsDLPack | SupportsCAI | Any, recvbuf: Buffer | "
            "SupportsDLPack | SupportsCAI, root: int, *, stream: Stream | "
            "cuda.core.typing.IsStreamType | int | None = None) None"
        ),
        "Communicator.create_pre_mul_sum": (
            "(scalar: int | float | numpy.ndarray | Buffer | SupportsDLPack | SupportsCAI, "
            "datatype: NcclDataType | None = None) CustomRedOp"
        ),
    },
}
