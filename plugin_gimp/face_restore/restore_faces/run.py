"""One run of the filter: read, restore, and only then touch the image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from gi.repository import Gegl, Gimp

from restore_faces import layers, pixels, progress
from restore_faces.blend import trim
from restore_faces.errors import NothingToDo, PluginError, news, no_face
from restore_faces.i18n import _
from restore_faces.job import Restored, Session
from restore_faces.layers import Result
from restore_faces.options import Settings
from restore_faces.pixels import Source
from restore_faces.worker import Worker


class Bar:
    """GIMP's progress bar over several layers."""

    def __init__(self, items: int) -> None:
        self.item = 0
        self._items = items
        self._shown = ""
        Gimp.progress_init(_("Restoring faces"))

    def show(
        self, stage: str, face: int = 0, faces: int = 0, fraction: float = 0.0, detail: str = ""
    ) -> None:
        """As job.Listener."""
        text = progress.text(stage, face, faces, detail)
        if text != self._shown:
            self._shown = text
            Gimp.progress_set_text(text)
        Gimp.progress_update(progress.overall(fraction, self.item, self._items))


def restore(
    image: Gimp.Image, drawables: Sequence[Gimp.Drawable], settings: Settings, worker: Worker
) -> tuple[list[Gimp.Layer], list[str]]:
    """The new layers, and what to tell the user. The image is changed only at the very end.

    Raises FaceRestoreError; NothingToDo when there is no face at all.
    """
    chosen = chosen_layers(image, drawables)
    detect, options = settings.detect_options(), settings.restore_options()
    Gegl.init(None)
    bar = Bar(len(chosen))
    results: list[Result] = []
    nothing: list[NothingToDo] = []
    with Session(worker, bar.show) as session, ExitStack() as copies:
        for bar.item, layer in enumerate(chosen):
            bar.show("reading")
            source = copies.enter_context(pixels.opened(image, layer))
            try:
                picture, region = pixels.read(image, source, settings.uses_selection)
                restored = session.restore(picture, detect, options)
                del picture
                pixels.follow(image, source)
                results.append(_result(source, region, restored, settings))
            except NothingToDo as reason:
                nothing.append(reason)
        if not results:
            raise _together(nothing)
        bar.show("writing", fraction=1.0)
        for result in results:
            pixels.follow(image, result.source)
        made = layers.write(image, results, settings)
    Gimp.progress_end()
    Gimp.displays_flush()
    notes = news([note for result in results for note in result.notes])
    return made, [str(reason) for reason in nothing] + notes


def _result(source: Source, region: pixels.Rect, restored: Restored, settings: Settings) -> Result:
    """Patches moved to the layer's coordinates and fitted to it; raises NothingToDo."""
    patches = []
    for patch in restored.patches:
        patch = trim(patch)
        patch.rect = patch.rect.shifted(region.x, region.y)
        x0, y0, x1, y1 = patch.box
        patch.box = (x0 + region.x, y0 + region.y, x1 + region.x, y1 + region.y)
        pixels.finish(source, patch)
        if patch.visible:
            patches.append(trim(patch))
    if not patches:
        raise _no_face(source, restored, settings)
    return Result(
        source, patches, restored.model, restored.model_id, restored.device, restored.notes
    )


def _no_face(source: Source, restored: Restored, settings: Settings) -> NothingToDo:
    name = source.layer.get_name()
    if restored.patches:
        return NothingToDo(
            _('The faces of "{layer}" lie where it is transparent or hidden by its mask.').format(
                layer=name
            ),
            hint=_("Show them, or select another layer."),
        )
    notes = news(restored.notes)
    if restored.found and notes:
        return NothingToDo(
            _('No face of "{layer}" could be restored.').format(layer=name), hint=" ".join(notes)
        )
    selected = pixels.selection_bounds(source.layer.get_image()) is not None
    reason = no_face(name, settings, settings.uses_selection and selected)
    reason.hint = " ".join([reason.hint, *notes])
    return reason


def _together(reasons: Sequence[NothingToDo]) -> NothingToDo:
    if len(reasons) == 1:
        return reasons[0]
    hints = list(dict.fromkeys(reason.hint for reason in reasons))
    return NothingToDo(" ".join(reason.message for reason in reasons), hint=" ".join(hints))


def chosen_layers(image: Gimp.Image, drawables: Sequence[Gimp.Drawable]) -> list[Gimp.Layer]:
    """The layers meant: a layer mask stands for its layer. Raises PluginError."""
    if image.get_base_type() == Gimp.ImageBaseType.INDEXED:
        raise PluginError(
            _("The colours of an indexed image are too few for this filter."),
            hint=_("Choose Image > Mode > RGB first."),
        )
    if image.get_floating_sel() is not None:
        raise PluginError(
            _("There is a floating selection."),
            hint=_("Anchor it or make it a layer first (Layer > Anchor Floating Layer or Mask)."),
        )
    chosen: list[Gimp.Layer] = []
    for drawable in drawables:
        if drawable.is_layer_mask():
            drawable = Gimp.Layer.from_mask(drawable)
        if drawable is None or not drawable.is_layer():
            raise PluginError(
                _("Faces can be restored in layers only, not in channels."),
                hint=_("Select a layer in the Layers dialog."),
            )
        if drawable not in chosen:
            chosen.append(drawable)
    if not chosen:
        raise PluginError(
            _("No layer is selected."), hint=_("Select a layer in the Layers dialog.")
        )
    return chosen
