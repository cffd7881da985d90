"""What dashboards cost: ours, stock sae_vis', SAEDashboard's and the least that any would have to compute.

`python -m benchmarks W1 W2 --scale small` runs workloads; see README.md. Modules import only from those above them:
`shapes` and `workloads` know no torch, so that the driver's own memory does not reach into its children's peaks.
"""
