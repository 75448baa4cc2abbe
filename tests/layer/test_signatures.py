"""Every name that FastVideo's reference pages publish is here, with their signature.

Allowed to differ: a parameter may take more types, a result that was not stated may be, and there
may be further parameters behind, by keyword only and with a default.
"""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from layer.seeds import SIGNATURES

NAMES = [(module, name) for module in SIGNATURES for name in SIGNATURES[module]]


def resolve(module: str, name: str) -> object:
    found: object = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def types(annotation: object) -> set[str]:
    """The members of a union, without modules."""
    if annotation is inspect.Parameter.empty:
        return set()
    text = re.sub(r"\b(\w+\.)+(?=\w)", "", str(annotation))
    depth, parts = 0, [""]
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return {part.strip() for part in parts}


def parse(signature: str) -> inspect.Signature:
    """Of the table's text. Types become strings; defaults that are names too."""
    scope: dict[str, object] = {}
    from_table = signature.replace("ReduceOp.SUM", "'ReduceOp.SUM'")
    from_table = re.sub(r"\) (\w+)$", r") -> \1", from_table)  # as nccl4py writes it
    exec(f"from __future__ import annotations\ndef f{from_table}: ...", scope)
    return inspect.signature(scope["f"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("module", "name"), NAMES, ids=".".join)
def test_the_name_has_its_signature(module: str, name: str) -> None:
    wanted = SIGNATURES[module][name]
    if wanted == "attribute":
        owner, attribute = name.split(".")
        assert attribute in inspect.get_annotations(resolve(module, owner))  # type: ignore[arg-type]
    elif wanted == "property":
        assert isinstance(resolve(module, name), property)
    elif wanted == "data" or not wanted:
        assert resolve(module, name) is not None
    else:
        compare(parse(wanted), inspect.signature(resolve(module, name)))  # type: ignore[arg-type]


def compare(theirs: inspect.Signature, ours: inspect.Signature) -> None:
    mine = [p for p in ours.parameters.values() if p.name != "self"]
    for their, my in zip(theirs.parameters.values(), mine, strict=False):
        assert (my.name, my.kind) == (their.name, their.kind)
        assert str(my.default) == str(their.default) or (
            str(their.default) == "ReduceOp.SUM" and "SUM" in str(my.default)
        )
        assert types(their.annotation) <= types(my.annotation) or not types(their.annotation)
    for further in mine[len(theirs.parameters) :]:
        assert further.kind is inspect.Parameter.KEYWORD_ONLY, further
        assert further.default is not inspect.Parameter.empty, further
    assert len(mine) >= len(theirs.parameters)
    if types(theirs.return_annotation):
        assert types(ours.return_annotation) == types(theirs.return_annotation)


IMPORTED_BY_FASTVIDEO = {
    "fastvideo_dist": """get_local_torch_device cleanup_dist_env_and_memory get_sp_world_size
        maybe_init_distributed_environment_and_model_parallel get_world_group get_sp_group
        get_tp_world_size get_world_rank init_distributed_environment initialize_model_parallel
        get_world_size get_sp_parallel_rank get_tp_rank divide model_parallel_is_initialized
        tensor_model_parallel_all_reduce tensor_model_parallel_all_gather
        split_tensor_along_last_dim""",
    "fastvideo_dist.parallel_state": """get_local_torch_device cleanup_dist_env_and_memory
        maybe_init_distributed_environment_and_model_parallel get_sp_world_size get_sp_group
        get_tp_world_size get_world_rank init_distributed_environment initialize_model_parallel
        get_world_size get_sp_parallel_rank model_parallel_is_initialized get_tp_group
        get_node_group destroy_model_parallel destroy_distributed_environment get_dp_group
        _WORLD _TP _SP _DP _NODE init_node_group get_same_node_ranks graph_capture
        patch_tensor_parallel_group GroupCoordinator GraphCaptureContext TensorMetadata""",
    "fastvideo_dist.communication_op": """sequence_model_parallel_shard
        sequence_model_parallel_all_gather_with_unpad sequence_model_parallel_all_to_all_4D
        sequence_model_parallel_all_gather warmup_sequence_parallel_communication
        get_sp_world_size get_sp_group""",
    "fastvideo_dist.utils": """divide ensure_divisibility split_tensor_along_last_dim
        StatelessProcessGroup compute_padding_for_sp pad_sequence_tensor unpad_sequence_tensor""",
    "fastvideo_dist.device_communicators.base_device_communicator": (
        "DeviceCommunicatorBase DistributedAutograd"
    ),
    "fastvideo_dist.device_communicators.cpu_communicator": "CpuCommunicator",
    "fastvideo_dist.device_communicators.cuda_communicator": "CudaCommunicator",
    "fastvideo_dist.device_communicators.pynccl": "PyNcclCommunicator NCCLLibrary ncclUniqueId",
    "fastvideo_dist.device_communicators.pynccl_wrapper": "NCCLLibrary ncclUniqueId ncclComm_t",
}


@pytest.mark.parametrize("module", IMPORTED_BY_FASTVIDEO)
def test_what_fastvideo_imports_is_there(module: str) -> None:
    home = importlib.import_module(module)
    for name in IMPORTED_BY_FASTVIDEO[module].split():
        assert hasattr(home, name), f"{module}.{name}"


COORDINATOR = """all_reduce all_gather all_to_all_4D shard broadcast broadcast_object
    broadcast_object_list send_object recv_object broadcast_tensor_dict send_tensor_dict
    recv_tensor_dict isend_tensor_dict irecv_tensor_dict gather barrier send recv graph_capture
    destroy first_rank last_rank is_first_rank is_last_rank next_rank prev_rank"""


def test_the_coordinator_has_its_members() -> None:
    from fastvideo_dist import GroupCoordinator  # noqa: PLC0415  (a lazy name of the package)

    missing = [name for name in COORDINATOR.split() if not hasattr(GroupCoordinator, name)]
    assert not missing
