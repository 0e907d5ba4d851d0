"""Every family of timm's encoders that gives feature maps: does it train at an odd image size? For docs/encoders.md.

Usage: python benchmarks/encoder_families.py [--page docs/encoders.md]

A small member of each, with random weights, trains one step of depth from two images of 100 x 76 pixels: some minutes
of one core, and 8 GB of memory for the largest. Without ``--page`` the tables are printed.
"""

from functools import partial

import timm
import torch
from pages import print_or_replace

from taskformer.errors import ConfigError
from taskformer.models import Backbone, BaselineHead, DenseNetwork

BEGIN = "<!-- begin: benchmarks/encoder_families.py -->\n"
SIZE = (100, 76)
#: At least one small member of every file of timm's that gives maps, and of every kind of ViT.
WORKING = """
    aimv2_large_patch14_224 beit3_base_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224 caformer_s18
    coatnet_nano_rw_224 coatnet_rmlp_nano_rw_224 convmixer_768_32 convnext_atto convnext_tiny.dinov3_lvd1689m
    convnextv2_atto cpubone_nano cs3darknet_s csatv2 cspnext_tiny darknet17 davit_tiny deepseek_vit_412m
    deit3_small_patch16_224 deit_tiny_distilled_patch16_224 densenet121 dla46_c dpn48b edgenext_xx_small
    efficientnet_b0 efficientvim_m1 efficientvit_b0 efficientvit_l1 efficientvit_m0 ese_vovnet19b_slim_dw
    eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 flexivit_small focalnet_tiny_srf gemma4_vit_167m ghostnet_050
    ghostnetv3_050 halonet26t hardcorenas_a hgnetv2_b0 hiera_small_abswin_256 hiera_tiny_224 hieradet_small
    hrnet_w18 hrnet_w18_small_v2 iformer_t inception_next_atto lambda_resnet26t lcnet_050 lcnetv2_small
    legacy_seresnet18 lowformer_b0 mambaout_femto maxvit_pico_rw_256 maxvit_tiny_tf_224 mobilenetv3_small_050
    mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium mobilenetv5_base mobileone_s0 mobilevit_xxs
    mobilevitv2_050 mvitv2_tiny naflexvit_base_patch16_gap nasnetalarge nextvit_small nf_regnet_b0 nfnet_l0
    pnasnet5large poolformer_s12 pvt_v2_b0 qwen3_vit_88m rdnet_tiny regnetx_002 regnety_002 regnetz_b16
    repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet18 resnetv2_50x1_bit rexnetr_100
    sam2_hiera_tiny samvit_base_patch16 samvit_base_patch16_224 selecsls42 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
    swinv2_tiny_window8_256 tf_efficientnet_lite0 tf_efficientnetv2_b0 tiny_vit_5m_224 tresnet_m twins_pcpvt_small
    twins_svt_small vgg11_bn vit_base_mci_224 vit_base_patch16_224.mae vit_base_patch16_siglip_224
    vit_base_patch16_siglip_gap_224 vit_pe_spatial_tiny_patch16_512 vit_relpos_medium_patch16_cls_224
    vit_relpos_small_patch16_224 vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_small_patch16_dinov3
    vit_small_patch16_rope_224 vit_small_patch8_224 vit_srelpos_small_patch16_224 vit_tiny_patch16_224
    vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 xception41 xcit_nano_12_p8_224
""".split()  # noqa: SIM905 - a list of strings takes a line for each
#: The same of those that take images of one size alone, and why.
REFUSED = {
    "botnet26t_256": "relative positions of one map size",
    "cait_xxs24_224": "positions of one image size",
    "coat_lite_tiny": "positions of one image size",
    "convit_tiny": "positions of one image size",
    "crossvit_tiny_240": "resizes images to two fixed sizes",
    "efficientformer_l1": "attention biases of one map size",
    "efficientformerv2_s0": "attention biases of one map size",
    "gcvit_xxtiny": "windows that belong to one image size",
    "gmlp_ti16_224": "weights between the places of one map size",
    "inception_resnet_v2": "convolutions without padding: maps are no whole fraction of the image",
    "inception_v3": "convolutions without padding: maps are no whole fraction of the image",
    "inception_v4": "convolutions without padding: maps are no whole fraction of the image",
    "legacy_xception": "convolutions without padding: maps are no whole fraction of the image",
    "levit_128s": "attention biases of one map size",
    "mixer_s16_224": "weights between the places of one map size",
    "nest_tiny": "positions and blocks of one image size",
    "pit_ti_224": "positions of one image size",
    "resmlp_12_224": "weights between the places of one map size",
    "tnt_s_patch16_224": "positions of one image size",
    "visformer_tiny": "positions of one image size",
    "volo_d1_224": "positions of one image size",
}


def family(name: str) -> str:
    """Return the file of timm's that a model is from."""
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def train(name: str) -> str:
    """Train an encoder for a step; return its row of the table.

    Raises:
        RuntimeError: If the output or a gradient is not what was promised.
    """
    torch.manual_seed(0)
    backbone = Backbone(name)
    network = DenseNetwork(backbone, partial(BaselineHead, {"depth": 1}, embed_dim=8, head_dim=8))
    output = network(torch.randn(2, 3, *SIZE))["depth"]
    output.square().mean().backward()
    learning = {key: parameter for key, parameter in network.named_parameters() if parameter.requires_grad}
    faults = [key for key, x in learning.items() if x.grad is None or not x.grad.isfinite().all()]
    if output.shape != (2, 1, *SIZE) or not output.isfinite().all() or faults:
        msg = f"{name}: an output of {tuple(output.shape)}, without a finite gradient: {faults}"
        raise RuntimeError(msg)
    torch.optim.SGD(learning.values(), lr=1e-3).step()
    return row(name, ", ".join(map(str, backbone.strides)), ", ".join(map(str, backbone.channels)), backbone.step)


def refuse(name: str) -> str:
    """Let an encoder be refused; return its row of the table.

    Raises:
        RuntimeError: If it is not.
    """
    try:
        Backbone(name)
    except ConfigError:
        return row(name, REFUSED[name])
    msg = f"{name} works"
    raise RuntimeError(msg)


def row(name: str, *cells: object) -> str:
    """Make a row of one of the tables."""
    return f"| {' | '.join([family(name), f'`{name}`', *map(str, cells)])} |"


def tables() -> str:
    """Make the tables of the encoders that work, and of those that are refused."""
    parts = []
    for title, header, make, names in (
        ("that work", ["strides", "channels", "padded to"], train, WORKING),
        ("that are refused", ["why"], refuse, REFUSED),
    ):
        columns = ["timm's file", "encoder", *header]
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [make(name) for name in sorted(names, key=lambda name: (family(name), name))]
        parts.append("\n".join([f"### {len(names)} {title}", "", *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    print_or_replace(__doc__ or "", BEGIN, tables)
