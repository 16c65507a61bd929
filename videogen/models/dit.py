"""The denoiser as a model of diffusers: its loading and saving, LoRA, offloading and compiling, around the plain DiT.

folder/transformer, of ours or of diffusers' Wan  <->  VideoDiT
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook

from videogen.models.dit_network import DiT
from videogen.packing.patch_schedule import Patch


class VideoDiT(DiT, ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The DiT that diffusers loads, saves, adapts and offloads; it computes as the plain one."""

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["patch_embedding", "condition_embedder", "norm", "extra_patches"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = ["norm_added_q"]  # noqa: RUF012
    _no_split_modules = ["Block"]  # noqa: RUF012
    _repeated_blocks = ["Block"]  # noqa: RUF012

    __init__ = register_to_config(DiT.__init__)  # the same arguments, kept in the config
    project_text = apply_forward_hook(DiT.project_text)
    project_levels = apply_forward_hook(DiT.project_levels)
    project_images = apply_forward_hook(DiT.project_images)

    def enable_cache(self, config: object) -> None:
        """Refuse the caches of diffusers, whose hooks know no packs; ours are settings."""
        raise ValueError(
            f"{type(config).__name__} does not fit this transformer, which computes packs of clips; set "
            "first_block_cache or mag_cache in the SampleConfig of the call"
        )

    @property
    def is_wan(self) -> bool:
        """True if diffusers' WanTransformer3DModel predicts the same with these weights."""
        goes_beyond = len(self.patches) > 1 or self.facts_head is not None or self.config["nearby"]
        return self.prediction == "velocity" and not goes_beyond

    @property
    def offloads_layers(self) -> bool:
        """True if hooks around each block move its weights: diffusers' group offloading, accelerate's sequential."""
        return any(hasattr(self.blocks[0], name) for name in ("_diffusers_hook", "_hf_hook"))

    def extended(self, patches: Sequence[Patch] = (), *, nearby: bool = False, num_facts: int = 0) -> VideoDiT:
        """Return the model with more patch sizes or parts; its predictions at known sizes stay the same bit for bit."""
        new = [patch for patch in patches if patch not in self.patches]
        now = {"nearby": self.config["nearby"], "num_facts": self.config["num_facts"]}
        parts = {"nearby": now["nearby"] or nearby, "num_facts": now["num_facts"] or num_facts}
        if not new and parts == now:
            return self
        options = parts | {"extra_patch_sizes": [*self.patches[1:], *new]}
        model = cast("VideoDiT", VideoDiT.from_config(self.config, **options))  # pyright: ignore[reportArgumentType]
        model.init_weights()
        model.load_state_dict(model.state_dict() | self.state_dict())
        model.init_extra_patches(new)
        model.to(self.device)  # type: ignore[call-overload]
        return model.train(self.training)
