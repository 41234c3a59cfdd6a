"""Feature-level ensembles: several backbones side by side, whose pooled features one head sees as one vector.

    --model="concat(efficientnet_v2_s, efficientnet_v2_m)" --weights="small.weights.h5, medium.weights.h5"

What belongs here: what such a model's flags mean, and the network. A single backbone is the shortest list of parts.
"""

from collections.abc import Sequence

import keras

from bloodcell import spec
from bloodcell.errors import InputError, did_you_mean
from bloodcell.models import backbones, heads

NAME = "concat"
_FLAG = "--model"


def parse(text: str) -> tuple[str, ...]:
    """Returns the backbones that a model's name stands for: one, or a concat's parts in order, at least two.

    Raises:
      InputError: no such model or part, fewer than two parts, or another spec.
    """
    if text in backbones.BACKBONES:
        return (text,)
    known = (*backbones.BACKBONES, NAME)
    if text != NAME and "(" not in text:
        raise InputError(f"{_FLAG}: unknown name '{spec.shorten(text)}'; {did_you_mean(text, known)}")
    term = spec.only_term(spec.parse(text, what=_FLAG), what=_FLAG)
    if term.name in backbones.BACKBONES:
        raise InputError(f"{_FLAG}: {term.name} expected no arguments, received '{spec.shorten(text)}'")
    spec.lookup(term, dict.fromkeys(known), what=_FLAG)
    if term.kwargs or len(term.args) < 2:
        received = "nothing" if not (term.args or term.kwargs) else f"'{spec.shorten(str(term))}'"
        raise InputError(f"{_FLAG}: {NAME} expected the names of at least 2 backbones, received {received}, "
                         f"try {NAME}(mobilenet_v3_small, efficientnet_lite0)")
    return tuple(_part(value) for value in term.args)


def _part(value: spec.Value) -> str:
    terms = value.terms if isinstance(value, spec.Chain) else ()
    if len(terms) != 1 or str(terms[0]) != terms[0].name:
        shown = str(value) if isinstance(value, spec.Chain) else repr(value)
        raise InputError(f"{_FLAG}: {NAME} expected names of backbones with commas between them, received "
                         f"'{spec.shorten(shown)}'")
    spec.lookup(terms[0], backbones.BACKBONES, what=f"{_FLAG}: {NAME}")
    return terms[0].name


def split_weights(text: str, count: int) -> tuple[str, ...]:
    """Returns the weights of each part: of one backbone the text, of several one word for all or one item for each.

    Args:
      text: `--weights`.
      count: how many parts there are.

    Raises:
      InputError: another number of items than parts.
    """
    if count == 1:
        return (text,)
    items = tuple(item.strip() for item in text.split(","))
    if items in (("imagenet",), ("none",)):
        return items * count
    if len(items) != count:
        raise InputError(f"--weights: expected imagenet, none, or {count} of these or of files, with commas between "
                         f"them, in the order of the parts of --model, received {len(items)}: '{spec.shorten(text)}'")
    return items


def build(names: Sequence[str], *, weights: Sequence[str], image_size: int) -> keras.Model:
    """Builds several backbones on one image.

    Args:
      names: of the parts, each a backbone; the same one may be there twice.
      weights: of each part, as `backbones.build` takes them.
      image_size: S, in pixels.

    Returns:
      A functional model named "backbone", from grey levels [B,S,S,3] to float32 [B,D]: the parts' feature maps, each
      averaged over its pixels, one after the other. Its sub-models bear the parts' names, the second of a name with
      "_2" behind it, and so do the paths of their variables, which are different throughout.

    Raises:
      MissingWeights, InputError: see `backbones.build`.
    """
    image = keras.Input((image_size, image_size, 3), dtype="float32", name="image")
    pooled = []
    for index, (name, source) in enumerate(zip(names, weights, strict=True)):
        before = list(names[:index]).count(name)
        part_name = f"{name}_{before + 1}" if before else name
        with keras.name_scope(part_name):  # two parts of a family have layers of the same names
            part = backbones.build(backbones.BACKBONES[name], weights=source, image_size=image_size, name=part_name)
        pooled.append(heads.pool("avg", name=f"pool_{part_name}")(part(image)))
    return keras.Model(image, keras.layers.Concatenate(dtype="float32", name="features")(pooled), name="backbone")


def parts(backbone: keras.Model) -> tuple[keras.Model, ...]:
    """Returns the sub-models of what `build` built, or a backbone that stands alone; in order."""
    if len(backbone.output.shape) != 2:
        return (backbone,)
    return tuple(layer for layer in backbone.layers if isinstance(layer, keras.Model))
