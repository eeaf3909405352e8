"use strict";
(() => {
  const { cases } = JSON.parse(document.getElementById("volumes-data").textContent);
  const of = (name) => document.getElementById(`viewer-${name}`);
  const shown = { image: of("image"), prediction: of("prediction"), truth: of("truth") };
  const view = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.6, 0.6, 0.6, 0.8],
    crosshairWidth: 0.4,
    dragAndDropEnabled: false,
    fontColor: [1, 1, 1, 1],
    isNearestInterpolation: true,
    isRadiologicalConvention: true,
    logLevel: "error",
    multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
    scrollRequiresFocus: true,
    showAllOrientationMarkers: true,
    showLegend: false,
  });
  const OPACITY = { image: 1, prediction: 0.5, truth: 0.05 }; // of the inside; 0 leaves a volume out
  const OUTLINE = 0.85;
  const LABEL = 1002; // the intent of NIfTI for label maps: NiiVue draws the outlines of such
  const rgb = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  const map = (colours) => {
    const [R, G, B] = [0, 1, 2].map((channel) => [0, ...colours.map((one) => one[channel])]);
    const A = [0, ...colours.map(() => 255)];
    return { R, G, B, A, labels: ["", ...colours.map(() => "")] };
  };
  const opacity = (name) => (shown[name].checked ? OPACITY[name] : 0);
  async function show(number) {
    const one = cases[number];
    of("status").textContent = `Case ${one.case} is being read.`;
    while (view.volumes.length) view.removeVolumeByIndex(0);
    const colours = {
      prediction: one.labels.map((label) => rgb(label.colour)),
      truth: one.labels.map(() => [255, 255, 255]),
    };
    for (const name of Object.keys(shown)) {
      const volume = await niivue.NVImage.loadFromBase64({ base64: one[name], name: `${name}.nii.gz` });
      if (name === "image") {
        [volume.cal_min, volume.cal_max] = [0, 255];
      } else {
        volume.setColormapLabel(map(colours[name]));
        volume.hdr.intent_code = name === "truth" ? LABEL : 0;
      }
      volume.opacity = opacity(name);
      view.addVolume(volume);
    }
    of("labels").replaceChildren(
      ...one.labels.map((label) => {
        const item = document.createElement("li");
        const patch = document.createElement("span");
        patch.style.background = label.colour;
        item.append(patch, label.name);
        return item;
      }),
    );
    of("status").textContent = [`Case ${one.case} is shown.`, one.said].join(" ").trim();
  }
  async function start() {
    await view.attachToCanvas(of("canvas"));
    view.setAtlasOutline(OUTLINE);
    for (const [number, name] of Object.keys(shown).entries()) {
      shown[name].addEventListener("input", () => view.setOpacity(number, opacity(name)));
    }
    of("case").addEventListener("input", (event) => show(Number(event.target.value)));
    await show(0);
  }
  start().catch((error) => {
    of("status").textContent = `This browser cannot show volumes (WebGL 2 is needed): ${error.message}`;
  });
})();
