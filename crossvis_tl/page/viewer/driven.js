// For features that read several sources: which of them drives a feature.

/** Which source drives the feature, and whose part tokens are shaded by. */
EXTRA.SourceAttribution = (ctx) => {
  const shares = ctx.data.attribution;
  if (!shares) return null;
  const bias = 1 - shares.reduce((sum, share) => sum + share, 0);
  const most = largest([...shares, bias].map(Math.abs)) || 1;
  const bar = (share, model) => el("td.wide", el(share < 0 ? "div.gauge.against" : "div.gauge", {
    data: model == null ? {} : { model: model % 4 }, vars: { "--share": Math.abs(share) / most },
  }));
  const rows = HEAD.sources.map((source, s) => [
    el("th", { scope: "row" }, SEVERAL && modelMark(source.model), shortLabel(source)), bar(shares[s], source.model),
    el("td", { data: { sourceShare: s } }, percent(shares[s], 1)),
  ]);
  rows.push([el("th", { scope: "row" }, "bias"), bar(bias), percent(bias, 1)]);
  const options = [["activation", { driver: "all" }], ...HEAD.sources.map((source, s) => [shortLabel(source), { driver: s }])];
  const shade = choice("Shade tokens by", options, driver == null ? 0 : driver + 1, (i) => {
    driver = i ? i - 1 : null;
    drawShades(ctx);
  });
  return panel("SourceAttribution", el("span", "Driven by ", el("small", "shares of the pre-activation, top examples")),
    el("div.scroll", table("table.norms", ["Source", "", "Share"], rows)),
    el("div.pick.shading", "Shade tokens by", shade));
};
