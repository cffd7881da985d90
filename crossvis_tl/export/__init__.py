"""What was gathered and shown, as other tools read it: Delphi's latent cache, circuit-tracer's feature files, what
Neuronpedia imports."""

from crossvis_tl.export.circuit_tracer import export_circuit_tracer
from crossvis_tl.export.delphi import export_delphi
from crossvis_tl.export.neuronpedia import export_neuronpedia
from crossvis_tl.export.neuronpedia_rows import NeuronpediaRelease

__all__ = ["NeuronpediaRelease", "export_circuit_tracer", "export_delphi", "export_neuronpedia"]
