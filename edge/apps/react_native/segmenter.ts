import type { ColorMap, SemanticSegmenterModel } from 'react-native-executorch';

import contract from './contract.json';

/** Names of the classes, in the order of the program's logits. */
export const labels: readonly string[] = contract.labels;

/** The colours of the classes, for `segment(image, colormap)`. */
export const colormap: ColorMap<string> = Object.fromEntries(
  contract.labels.map((label, index) => {
    const [red = 0, green = 0, blue = 0] = contract.palette[index] ?? [];
    return [label, [red, green, blue, 255]];
  })
);

/**
 * What `createSemanticSegmenter` and `useSemanticSegmenter` of react-native-executorch take.
 * @param modelPath Path of `model.pte` on the phone, without `file://`; for the hook it may be an http(s) URL.
 */
export function segmenterModel(modelPath: string): SemanticSegmenterModel<string> {
  return {
    modelPath,
    modelOpts: {
      labels,
      resizeMode: 'stretch',
      // The contract's filters average over the pixels they leave out; of OpenCV's filters only `area` does.
      interpolation: contract.resample === 'nearest' ? 'nearest' : 'area',
      // Colours of classes must not be mixed.
      outInterpolation: 'nearest',
      // Mean and standard deviation are inside the program: it takes pixels in [0, 1].
      normalizeOpts: { alpha: 1 / 255, beta: 0 },
    },
  };
}
