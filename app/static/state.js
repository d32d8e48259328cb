// The state of the Explore page. Controls change it and call `refresh`; answers of the server replace the picture.

export const state = {
  // What the visitor has set.
  policy: "learned", // a name of POLICIES
  budget: 1, // mean cost of an instance, as a share of the finest size's
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
  stops: [], // mean MACs per instance at each step of the budget slider, rising

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

// Mean MACs per instance that the budget allows.
export function budgetMacs() {
  const { macs } = state.view;
  const finest = macs[macs.length - 1];
  return Math.min(finest, Math.max(macs[0], state.budget * finest));
}

// Allows a mean of `macs` per instance.
export function allowMacs(macs) {
  state.budget = macs / state.view.macs[state.view.macs.length - 1];
}

// The last step of the slider that costs at most a mean of `macs` per instance; half a MAC for rounding.
export function stepOf(macs) {
  return Math.max(0, state.stops.findLastIndex((stop) => stop <= macs + 0.5));
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
