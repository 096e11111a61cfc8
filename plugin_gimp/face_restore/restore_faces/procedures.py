"""What GIMP sees: two procedures, their arguments, and how errors come out."""

from __future__ import annotations

import sys
from typing import Any

from face_restore_shared.errors import FaceRestoreError
from gi.repository import Gimp, GLib, GObject

from restore_faces import errors, status
from restore_faces.i18n import DOMAIN, _
from restore_faces.options import FACES, MASKS, Settings
from restore_faces.worker import Worker

RESTORE = "plug-in-face-restore"
STATUS = "plug-in-face-restore-status"
AUTHORS = "The gimp-face-restore authors"
_FLAGS = GObject.ParamFlags.READWRITE


class FaceRestore(Gimp.PlugIn):
    """The plug-in; one process of it for each run."""

    def do_query_procedures(self) -> list[str]:
        return [RESTORE, STATUS]

    def do_set_i18n(self, _name: str) -> tuple[bool, str, None]:
        return True, DOMAIN, None

    def do_create_procedure(self, name: str) -> Gimp.Procedure:
        return _restore_procedure(self, name) if name == RESTORE else _status_procedure(self, name)


def _restore_procedure(plugin: Gimp.PlugIn, name: str) -> Gimp.Procedure:
    procedure = Gimp.ImageProcedure.new(plugin, name, Gimp.PDBProcType.PLUGIN, _run, None)
    procedure.set_image_types("RGB*, GRAY*")
    procedure.set_sensitivity_mask(
        Gimp.ProcedureSensitivityMask.DRAWABLE | Gimp.ProcedureSensitivityMask.DRAWABLES
    )
    procedure.set_menu_label(_("Restore _Faces…"))
    procedure.add_menu_path("<Image>/Filters/Enhance")
    procedure.set_documentation(
        _("Restore blurred, noisy or damaged faces as a new layer"),
        _(
            "Finds the faces of the selected layers, restores them with a neural network on this "
            "computer and returns them as new layers above, which are also the return value. "
            "No face: no layer, a message and an empty array."
        ),
        None,  # GIMP's manual has no page about it that the dialog's Help could open
    )
    procedure.set_attribution(AUTHORS, AUTHORS, "2026")
    _add_arguments(procedure)
    procedure.add_core_object_array_return_value(
        "layers", _("New layers"), _("One for each layer with faces"), Gimp.Layer.__gtype__, _FLAGS
    )
    return procedure


def _choice(names: tuple[str, ...], labels: tuple[str, ...]) -> Gimp.Choice:
    choice = Gimp.Choice.new()
    for number, (nick, label) in enumerate(zip(names, labels, strict=True)):
        choice.add(nick, number, label, "")
    return choice


def _add_arguments(procedure: Gimp.Procedure) -> None:
    """The arguments, in the order of options.Settings' use: which faces, how they come back."""
    own = Settings()
    procedure.add_string_argument(
        "model",
        _("_Model"),
        _('A model\'s id, or "auto" for the best one that is installed'),
        own.model,
        _FLAGS,
    )
    labels = (
        _("In the selection, all without one"),
        _("All, whatever is selected"),
        _("The largest"),
    )
    procedure.add_choice_argument(
        "faces",
        _("_Faces"),
        _("Which faces to restore"),
        _choice(FACES, labels),
        own.faces,
        _FLAGS,
    )
    _add_result_arguments(procedure, own)
    _add_number(procedure, "threshold", _("_Detection threshold (%)"), own.threshold, 100.0,
                _("How sure the detector must be that it sees a face; 0: its choice"))  # fmt: skip
    procedure.add_int_argument(
        "min-face",
        _("Smallest face (_pixels)"),
        _("Faces less high than this are left alone"),
        1,
        4096,
        own.min_face,
        _FLAGS,
    )


def _add_result_arguments(procedure: Gimp.Procedure, own: Settings) -> None:
    """What the new layer is like."""
    _add_number(procedure, "strength", _("Stren_gth (%)"), own.strength, 100.0,
                _("The new layer's opacity"))  # fmt: skip
    _add_number(procedure, "softness", _("Mask soft_ness (%)"), own.softness, 400.0,
                _("Width of the masks' soft edge; 100 is the usual one"))  # fmt: skip
    procedure.add_boolean_argument(
        "keep-colour",
        _("_Keep the original colour"),
        _("Take detail from the model, colour from the photograph"),
        own.keep_colour,
        _FLAGS,
    )
    procedure.add_choice_argument(
        "mask",
        _("Soft _edge as"),
        _("A layer mask can be painted on afterwards"),
        _choice(MASKS, (_("Layer mask"), _("Transparency"))),
        own.mask,
        _FLAGS,
    )
    procedure.add_boolean_argument(
        "layer-per-face",
        _("One la_yer for each face"),
        _("In a layer group, from left to right"),
        own.layer_per_face,
        _FLAGS,
    )


def _add_number(
    procedure: Gimp.Procedure, name: str, label: str, value: float, top: float, help_text: str
) -> None:
    procedure.add_double_argument(name, label, help_text, 0.0, top, value, _FLAGS)


def _settings(config: Gimp.ProcedureConfig) -> Settings:
    get = config.get_property
    return Settings(
        model=get("model") or "auto",
        strength=get("strength"),
        faces=get("faces"),
        threshold=get("threshold"),
        min_face=get("min-face"),
        softness=get("softness"),
        keep_colour=get("keep-colour"),
        layer_per_face=get("layer-per-face"),
        mask=get("mask"),
    )


def _run(
    procedure: Gimp.Procedure,
    run_mode: Gimp.RunMode,
    image: Gimp.Image,
    drawables: list[Gimp.Drawable],
    config: Gimp.ProcedureConfig,
    _data: Any,
) -> Gimp.ValueArray:
    worker = Worker()
    try:
        from restore_faces import run

        if run_mode == Gimp.RunMode.INTERACTIVE:
            from restore_faces import dialog

            run.chosen_layers(image, drawables)  # what cannot be done is told before the dialog
            if not dialog.ask(procedure, config, worker):
                return procedure.new_return_values(Gimp.PDBStatusType.CANCEL, GLib.Error())
        made, messages = run.restore(image, drawables, _settings(config), worker)
    except errors.NothingToDo as reason:
        Gimp.message(errors.sentence(reason))
        return procedure.new_return_values(Gimp.PDBStatusType.SUCCESS, GLib.Error())
    except FaceRestoreError as error:
        return _failed(procedure, errors.sentence(error, worker.log))
    except Exception as error:
        import traceback

        traceback.print_exc(file=sys.stderr)
        said = f"{type(error).__name__}: {error}"
        return _failed(procedure, _("A defect of the plug-in: {what}").format(what=said))
    if messages:
        Gimp.message("\n".join(messages))
    return _new_layers(image, made)


def _new_layers(image: Gimp.Image, made: list[Gimp.Layer]) -> Gimp.ValueArray:
    """Success and the new layers.

    Python cannot make a value of the type GimpCoreObjectArray (PyGObject has no setter for it),
    but GIMP's own procedure gives one of what is selected: for a moment, these layers.
    """
    ask = Gimp.get_pdb().lookup_procedure("gimp-image-get-selected-layers")
    config = ask.create_config()
    config.set_property("image", image)
    selected = image.get_selected_layers()
    image.set_selected_layers(made)
    values = ask.run(config)
    if selected:
        image.set_selected_layers(selected)
    return values


def _failed(procedure: Gimp.Procedure, text: str) -> Gimp.ValueArray:
    error = GLib.Error.new_literal(Gimp.PlugIn.error_quark(), text, 0)
    return procedure.new_return_values(Gimp.PDBStatusType.EXECUTION_ERROR, error)


def _status_procedure(plugin: Gimp.PlugIn, name: str) -> Gimp.Procedure:
    procedure = Gimp.Procedure.new(plugin, name, Gimp.PDBProcType.PLUGIN, _run_status, None)
    procedure.set_documentation(
        _("The face restoration worker's status"),
        _('Lines "name: value", the first one "state". Starts nothing.'),
        name,
    )
    procedure.set_attribution(AUTHORS, AUTHORS, "2026")
    procedure.add_string_return_value("status", _("Status"), _("As text"), "", _FLAGS)
    return procedure


def _run_status(
    procedure: Gimp.Procedure, _config: Gimp.ProcedureConfig, _data: Any
) -> Gimp.ValueArray:
    values = procedure.new_return_values(Gimp.PDBStatusType.SUCCESS, GLib.Error())
    values.remove(1)
    values.insert(1, GObject.Value(GObject.TYPE_STRING, status.text(Worker())))
    return values
