"""Releases as model repositories of the Hugging Face Hub."""

from stream_learner.contract.manifest import encode
from stream_learner.follow.directories.base import MANIFEST, Linked, model_of
from stream_learner.follow.directories.model_card import model_card
from stream_learner.follow.releases import Release


class HuggingFace(Linked):
    """The files of a model repository for each release. `README.md` is its model card."""

    def _files(self, release: Release) -> dict[str, bytes]:
        files = {
            "model.safetensors": release.data,
            "config.json": encode(_config(release)),
            "preprocessor_config.json": encode(_preprocessor(release)),
            "README.md": model_card(release).encode(),
            MANIFEST: encode(release.manifest),
        }
        if release.graph is not None:
            files["model.onnx"] = model_of(release, "huggingface")
        return files


def _config(release: Release) -> dict[str, object]:
    model, shown = release.described.model, release.described.preprocessing
    names = [str(label) for label in release.labels]
    return {
        "model_type": "stream-learner",
        "architectures": [model.name],
        "arguments": model.arguments,
        "image_size": [shown.height, shown.width],
        "num_channels": shown.channels,
        "num_labels": len(names),
        "labels": release.labels,
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
        "torch_dtype": release.described.dtype,
    }


def _preprocessor(release: Release) -> dict[str, object]:
    """Describe how an image becomes uint8 pixels. The network itself computes (pixels / 255 - mean) / std."""
    shown = release.described.preprocessing
    return {
        "do_convert_rgb": shown.channels == 3,
        "do_resize": True,
        "size": {"height": shown.height, "width": shown.width},
        "resample": 2,  # bilinear
        "do_rescale": False,
        "do_normalize": False,
        "image_mean": shown.mean,
        "image_std": shown.std,
        "preprocessing": shown,
    }
