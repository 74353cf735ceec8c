import type { Classification, ClassifierModel } from 'react-native-executorch';

import contract from './contract.json';

/** Names of the classes, in the order of the program's logits. */
export const labels: readonly string[] = contract.labels;

/**
 * What `createClassifier` and `useClassifier` of react-native-executorch take.
 * @param modelPath Path of `model.pte` on the phone, without `file://`; for `useClassifier` it may be an http(s) URL.
 */
export function classifierModel(modelPath: string): ClassifierModel<string> {
  return {
    modelPath,
    modelOpts: {
      labels,
      resizeMode: 'stretch',
      // The contract's filters average over the pixels they leave out; of OpenCV's filters only `area` does.
      interpolation: contract.resample === 'nearest' ? 'nearest' : 'area',
      // Mean and standard deviation are inside the program: it takes pixels in [0, 1].
      normalizeOpts: { alpha: 1 / 255, beta: 0 },
    },
  };
}

/**
 * Probabilities with the artefact's temperature from those of `classify`, which knows none.
 * @param classifications All classes, so call `classify` without `topk`; cut the list afterwards.
 */
export function calibrate(classifications: readonly Classification<string>[]): Classification<string>[] {
  const scores = classifications.map(({ confidence }) => confidence ** (1 / contract.temperature));
  const sum = scores.reduce((total, score) => total + score, 0);
  return classifications.map(({ label }, index) => ({ label, confidence: scores[index]! / sum }));
}
