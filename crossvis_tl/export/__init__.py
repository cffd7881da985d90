"""What was gathered and shown, as other tools read it: Delphi's latent cache, circuit-tracer's feature files, what
Neuronpedia imports."""

from crossvis_tl.export.circuit_tracer import export_circuit_tracer
from crossvis_tl.export.delphi import export_delphi
from crossvis_tl.export.neuronpedia import export_neuronpedia
from crossvis_tl.export.neuronpedia_rows import NeuronpediaRelease
from crossvis_tl.export.runner import NeuronpediaRunner
from crossvis_tl.export.runner_config import NeuronpediaRunnerConfig

__all__ = [
    "NeuronpediaRelease",
    "NeuronpediaRunner",
    "NeuronpediaRunnerConfig",
    "export_circuit_tracer",
    "export_delphi",
    "export_neuronpedia",
]
