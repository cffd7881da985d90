// For dictionaries of many layers: how good the replacement is, layer by layer.

/** What a model loses with reconstructions put in, in a sentence. */
const lossSays = ({ model, clean, n_tokens: n, note, together }) =>
  el("p", clean == null ? [`Loss of ${model}: `, note] : [
    `Loss of ${model}: `, field("clean-loss", num(clean)), ` nats a token as it is (${count(n)} tokens)`,
    together && [", ", field("together-loss", num(together.loss)), ` with all put in, which keeps ${percent(together.kept, 1)} of what zeroing them costs`],
    note && `; ${note}`,
  ]);

/** FVU, L0, dead features and loss, a row for each site. */
EXTRA.quality = ({ sites, groups = [], losses = [], l0, dead }) => {
  const byLayer = groups.length === sites.length && groups.length > 1;
  const put = new Map(); // two models may have one name: losses come in the order of the sites
  for (const site of losses.flatMap((one) => one.sites)) put.set(site.label, [...(put.get(site.label) ?? []), site]);
  const heads = ["Site", "FVU", ...(byLayer ? ["L0", "Dead"] : []), ...(put.size ? ["Loss put in", "Recovered"] : [])];
  const row = (name, fvu, group, loss, i) => [
    el("th", { scope: "row" }, name), el("td", { data: { siteFvu: i } }, fvu == null ? "" : num(fvu)),
    ...(byLayer ? [num(group.l0, 1), percent(group.dead, 1)] : []),
    ...(put.size ? [el("td", { data: { siteLoss: i } }, num(loss?.loss)), percent(loss?.kept, 1)] : []),
  ];
  const rows = sites.map(({ label, fvu }, i) => row(shortLabel(HEAD.targets[i]), fvu, groups[i], put.get(label)?.shift(), i));
  if (byLayer) rows.push(row("all", null, { l0, dead }, losses[0]?.together, "all"));
  return el("details.quality", { open: sites.length <= 6 }, el("summary", "Quality by site"),
    el("div.scroll", table("table", heads, rows)));
};

EXTRA.losses = ({ losses = [] }) => losses.map(lossSays);
