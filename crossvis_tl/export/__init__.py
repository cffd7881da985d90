"""What was gathered and shown, as other tools read it: Delphi's latent cache, circuit-tracer's feature files."""

from crossvis_tl.export.circuit_tracer import export_circuit_tracer
from crossvis_tl.export.delphi import export_delphi

__all__ = ["export_circuit_tracer", "export_delphi"]
