// The state of the Explore page. Controls change it and call `refresh`; answers of the server replace the picture.

export const BUDGET_STEPS = 200;

export const state = {
  // What the visitor has set.
  policy: "learned", // a name of POLICIES
  step: BUDGET_STEPS, // budget slider: 0 is the cheapest size for all, BUDGET_STEPS the finest
  score: 0.5,
  opacity: 0.45,
  boxes: false,
  paper: false, // the paper's colours
  each: false, // one-stage weights: a colour for each instance
  hidden: new Set(), // names of classes that are switched off
  overrides: new Map(), // index of an instance → index of the size that was set by hand
  compare: null, // name of the policy left of the divider, null without a comparison
  divider: 0.5, // share of the picture's width
  selected: null, // index of an instance
  hovered: null,
  drawing: null, // the box that is being drawn, see boxes.js

  // The picture: the server's view with decoded masks, and its pixels.
  view: null,
  picture: null,

  // What choices.js makes of both: instances above the score, best first, and the index of the size (or level) of each.
  shown: [],
  picks: [],
  leftPicks: null,

  // Requests.
  busy: false,
  timing: null, // last measured time of the mask branch, see timing.js
  ready: false, // whether all sizes of the picture have been drawn ahead
  answerMs: 0, // how long the last move took until the picture was drawn
};

// Whether the weights are one-stage: levels of a grid instead of mask sizes, and no switch.
export function oneStage() {
  return state.view?.family === "one-stage";
}

// Mean MACs per instance that the slider allows.
export function budgetMacs() {
  const { macs } = state.view;
  return macs[0] + ((macs[macs.length - 1] - macs[0]) * state.step) / BUDGET_STEPS;
}

// The first step of the slider that allows a mean of `macs`.
export function nearestStep(macs) {
  const { macs: costs } = state.view;
  const span = Math.max(costs[costs.length - 1] - costs[0], 1);
  return Math.min(BUDGET_STEPS, Math.max(0, Math.ceil(((macs - costs[0]) / span) * BUDGET_STEPS - 1e-9)));
}

// Colours and outlines of the sizes (or levels), coarse to fine.
export function styles() {
  return (state.paper && state.view.paper_styles) || state.view.styles;
}

// Colour and outline of an instance at index `k`: those of its size or level, or its own with `each`.
export function styleOf(one, k) {
  return state.each && oneStage() ? { ...styles()[k], ...instanceColour(one.index) } : styles()[k];
}

// Hues of neighbours in the list are far apart, and all are light enough for black letters.
function instanceColour(index) {
  const hue = (index * 0.618033988749895) % 1;
  const light = 0.66;
  const part = (n) => {
    const k = (n + hue * 12) % 12;
    const value = light - 0.8 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1));
    return Math.round(value * 255).toString(16).padStart(2, "0");
  };
  return { colour: `#${part(0)}${part(8)}${part(4)}`, text: "#000000" };
}
