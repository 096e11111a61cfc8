"""The dialog: GIMP's own for the options, with the models and the worker's state on top."""

from __future__ import annotations

from face_restore_shared.schema import ModelInfo
from gi.repository import Gimp, GimpUi, GLib, GObject, Gtk

from restore_faces.i18n import _
from restore_faces.status import Poller, model_choices
from restore_faces.worker import Worker

REFRESH_MS = 250
USUAL_THRESHOLD = 50.0  # percent; where the slider begins for those who switch to one of their own
OPTIONS = [
    "faces",
    "strength",
    "softness",
    "keep-colour",
    "mask",
    "layer-per-face",
]
DETECTION = ["threshold", "min-face"]


def ask(procedure: Gimp.Procedure, config: Gimp.ProcedureConfig, worker: Worker) -> bool:
    """Show the dialog; True when the user chose to restore. The values are then in `config`."""
    GimpUi.init("face-restore")
    dialog = GimpUi.ProcedureDialog.new(procedure, config, _("Restore Faces"))
    dialog.set_ok_label(_("Rest_ore"))
    poller = Poller(worker)
    content = dialog.get_content_area()
    model = ModelRow(config)
    content.pack_start(model.row, False, False, 6)
    for name in ("faces", "mask"):  # GIMP 3.2: else a row for each choice, no mnemonic
        dialog.get_widget(name, Gtk.ComboBox.__gtype__)
    for name in ("strength", "softness"):
        dialog.get_scale_entry(name, 1.0)
    threshold = dialog.get_scale_entry("threshold", 1.0)
    dialog.fill(OPTIONS)
    own = OwnThreshold(config, threshold)
    content.pack_start(own.button, False, False, 0)
    dialog.fill(DETECTION)
    line = Gtk.Label(xalign=0.0, wrap=True, max_width_chars=52, selectable=True)
    line.set_margin_top(6)
    content.pack_end(line, False, False, 6)
    content.show_all()

    def refresh() -> bool:
        if line.get_text() != poller.line:
            line.set_text(poller.line)
        model.offer(poller.models)
        return GLib.SOURCE_CONTINUE

    refresh()
    timer = GLib.timeout_add(REFRESH_MS, refresh)
    try:
        return bool(dialog.run())
    finally:
        GLib.source_remove(timer)
        poller.close()
        dialog.destroy()


class OwnThreshold:
    """The switch beside the threshold: on is the setting 0, the detector's own value."""

    def __init__(self, config: Gimp.ProcedureConfig, entry: Gtk.Widget) -> None:
        self._config, self._entry = config, entry
        self._other = USUAL_THRESHOLD
        self.button = Gtk.CheckButton.new_with_mnemonic(_("_Use the detector's own threshold"))
        self.button.connect("toggled", self._chosen)
        config.connect("notify::threshold", self._show)
        self._show()

    def _chosen(self, button: Gtk.CheckButton) -> None:
        value = self._config.get_property("threshold")
        if button.get_active() and value > 0.0:
            self._other = value
            self._config.set_property("threshold", 0.0)
        elif not button.get_active() and value <= 0.0:
            self._config.set_property("threshold", self._other)

    def _show(self, *_notified: object) -> None:
        """Follow the setting, also where Reset or saved settings change it."""
        own = self._config.get_property("threshold") <= 0.0
        self.button.set_active(own)
        self._entry.set_sensitive(not own)


class ModelRow:
    """The choice of the model: what the worker has, as soon as it says so."""

    def __init__(self, config: Gimp.ProcedureConfig) -> None:
        self._config = config
        self._shown: list[tuple[str, str]] = []
        self.row = Gtk.Box(orientation=Gtk.Orientation.HORIZONTAL, spacing=12)
        label = Gtk.Label.new_with_mnemonic(_("_Model"))
        self._combo = Gtk.ComboBoxText()
        label.set_mnemonic_widget(self._combo)
        self.row.pack_start(label, False, False, 0)
        self.row.pack_start(self._combo, True, True, 0)
        self._combo.connect("changed", self._chosen)
        config.connect("notify::model", self._show)
        self.offer(())

    def offer(self, models: tuple[ModelInfo, ...]) -> None:
        """List these models, and what is set if it is not among them."""
        choices = model_choices(models)
        current = self._config.get_property("model")
        if current not in [ident for ident, _label in choices]:
            choices.append((current, current))
        if choices == self._shown:
            return
        self._shown = []  # what follows is not the user's choice
        self._combo.remove_all()
        for ident, text in choices:
            self._combo.append(ident, text)
        self._combo.set_active_id(current)
        self._shown = choices

    def _chosen(self, combo: Gtk.ComboBoxText) -> None:
        ident = combo.get_active_id()
        if self._shown and ident and ident != self._config.get_property("model"):
            self._config.set_property("model", ident)

    def _show(self, config: Gimp.ProcedureConfig, _spec: GObject.ParamSpec) -> None:
        """Follow the dialog's Reset."""
        current = config.get_property("model")
        if self._combo.get_active_id() != current and not self._combo.set_active_id(current):
            self._combo.append(current, current)
            self._combo.set_active_id(current)
