// Numbers as text.

export function roundTo(value, digits) {
  return Number(value.toFixed(digits));
}

// A number of MACs with three significant digits: 32_189_633 becomes "32.2 M".
export function formatCount(macs) {
  if (macs < 999.5) return String(Math.round(macs));
  const [size, letter] = [[1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([least]) => macs >= least * 0.9995);
  const value = macs / size;
  return `${value < 999.5 ? value.toPrecision(3) : Math.round(value)} ${letter}`;
}

export function formatMacs(macs) {
  return `${formatCount(macs)} MACs`;
}

// A share of 1 in percent.
export function percent(share) {
  const value = share * 100;
  return value > 0 && value < 1 ? "<1 %" : `${Math.round(value)} %`;
}

export function milliseconds(value) {
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} s`;
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

// A count with its noun: plural(1, "instance") is "1 instance", plural(2, "instance") "2 instances".
export function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

// Width and height of a box [x0, y0, x1, y1].
export function boxText(box) {
  return `${Math.round(box[2] - box[0])} × ${Math.round(box[3] - box[1])}`;
}
