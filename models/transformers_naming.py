"""Vision weights in the naming of Hugging Face's transformers, renamed to timm's or the original's.

The files of a hub: ``model.safetensors`` or ``pytorch_model.bin`` of ViT, DINOv2 (with registers),
DINOv3, CLIP, SigLIP, ConvNeXt and ConvNeXt V2. Of a network for pictures and text, the tower of
pictures is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

__all__ = ["in_transformers_naming", "to_timm"]

State = dict[str, torch.Tensor]
Rules = Sequence[tuple[str, str]]

# Prefixes of the tower in a larger network's file.
_TOWER = re.compile(
    r"(vision_model|vit|dinov2|dinov2_with_registers|dinov3_vit|convnext|convnextv2)\.(?=embeddings|encoder|layer|"
    r"(pre_|post_)?lay|head|model|norm|pooler)"
)

# A part of a key, and what replaces it, in this order. An empty replacement drops the tensor.
_VIT: Rules = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
_CLIP: Rules = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"^post_layernorm\.", "norm."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.", "attn_pool."),
)
_CONVNEXT: Rules = (
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.", ""),
    (r"\.downsampling_layer\.", ".downsample."),
    (r"\.layers\.", ".blocks."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.", ".mlp.grn."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"(stages\.\d+\.blocks\.\d+)\.layernorm\.", r"\1.norm."),
    (r"^layernorm\.", "head.norm."),
    (r"^classifier\.", "head.fc."),
)
_DINOV3: Rules = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.", ""),
    (r"^(model\.)?layer\.", "blocks."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1_proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".gamma_\1"),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
# Beside the tower, or for its pretraining alone.
_OTHER = re.compile(r"(text_model|text_projection|visual_projection|logit_|pooler)|.*position_ids$")
_PARTS = {"query": "q", "key": "k", "value": "v", "q_proj": "q", "k_proj": "k", "v_proj": "v"}
_PART = re.compile(rf"(.*\.attn)\.({'|'.join(_PARTS)})\.(weight|bias)")


def in_transformers_naming(state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the keys are those of one of the families here."""
    return _rules({_TOWER.sub("", key, count=1) for key in state}) is not None


def _rules(keys: set[str]) -> Rules | None:
    if "embeddings.patch_embeddings.projection.weight" in keys:
        return _VIT
    if "embeddings.patch_embedding.weight" in keys:
        return _CLIP
    if "embeddings.patch_embeddings.weight" in keys:
        return _CONVNEXT if "encoder.stages.0.layers.0.dwconv.weight" in keys else _DINOV3
    return None


def to_timm(state: Mapping[str, torch.Tensor]) -> State:
    """Rename the tensors; those of DINOv2 get its own names, which timm converts.

    The result holds views of the given tensors, and new ones where timm joins queries, keys and
    values. Tensors that fit no rule keep their names.

    Raises:
        ValueError, RuntimeError: shapes do not fit one another, or the naming is another one.

    """
    tower = {_TOWER.sub("", key, count=1): value for key, value in state.items() if not _OTHER.match(key)}
    rules = _rules(set(tower))
    if rules is None:
        raise ValueError("another naming")
    renamed = {_renamed(key, rules): value for key, value in tower.items()}
    if rules is _CLIP:
        _reshape_clip(renamed)
    elif rules is _DINOV3:
        renamed.pop("mask_token", None)
        gated = any(".mlp.gate_proj." in key for key in renamed)
        names = {"gate_proj": "fc1_g", "up_proj": "fc1_x" if gated else "fc1"}
        renamed = {re.sub("gate_proj|up_proj", lambda match: names[match[0]], key): renamed[key] for key in renamed}
    elif rules is _CONVNEXT:
        renamed = {key: value.flatten() if ".grn." in key else value for key, value in renamed.items()}
    elif "mask_token" in renamed:  # DINOv2, whose classifier reads the mean beside the class token
        renamed = {key: value for key, value in renamed.items() if not key.startswith("head.")}
    return _joined(renamed)


def _renamed(key: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _reshape_clip(state: State) -> None:
    """Give the class token and the positions their batch dimension; split the pooling's products."""
    if "cls_token" in state:
        state["cls_token"] = state["cls_token"].reshape(1, 1, -1)
    if "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"].unsqueeze(0)
    for kind in ("weight", "bias"):
        whole = state.pop(f"attn_pool.attention.in_proj_{kind}", None)
        if whole is not None:
            width = len(whole) // 3
            state[f"attn_pool.q.{kind}"], state[f"attn_pool.kv.{kind}"] = whole[:width], whole[width:]


def _joined(state: State) -> State:
    """Join queries, keys and values of a block to one tensor.

    Keys of DINOv3 have no bias; timm then stores the others apart.
    """
    result: State = {}
    parts: dict[tuple[str, str], State] = {}
    for key, value in state.items():
        match = _PART.fullmatch(key)
        if match is None:
            result[key] = value
        else:
            parts.setdefault((match[1], match[3]), {})[_PARTS[match[2]]] = value
    for (attention, kind), projections in parts.items():
        if set(projections) == {"q", "k", "v"}:
            result[f"{attention}.qkv.{kind}"] = torch.cat([projections["q"], projections["k"], projections["v"]])
        else:
            result.update({f"{attention}.{part}_{kind}": value for part, value in projections.items()})
    return result
