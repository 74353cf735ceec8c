package org.swinhf.edge

import kotlin.math.exp
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Prediction(val label: String, val probability: Double)

/** The program in [programPath], which takes pictures as [contract] says. Not for two threads at once. */
class Classifier(programPath: String, private val contract: Contract) {
    private val module = Module.load(programPath)

    init {
        check("labels" in module.getMethods()) { "model.pte must have a method `labels`; export it again with swin-hf" }
        val count = module.execute("labels").size
        check(count == contract.labels.size) {
            "contract.json must name the $count classes of model.pte, got ${contract.labels.size}; write the app again"
        }
    }

    /** Every class with its probability, the most probable first. */
    fun classify(picture: Picture): List<Prediction> {
        val (height, width) = contract.height to contract.width
        val pixels = fit(picture, height, width, contract.cropPct, contract.filter)
        val input =
            if (contract.takesBytes) Tensor.fromBlobUnsigned(pixels, longArrayOf(1, height.toLong(), width.toLong(), 3))
            else Tensor.fromBlob(toPlanes(pixels), longArrayOf(1, 3, height.toLong(), width.toLong()))
        val logits = module.forward(EValue.from(input))[0].toTensor().dataAsFloatArray
        val largest = logits.max()
        val scores = logits.map { exp((it - largest) / contract.temperature) }
        val sum = scores.sum()
        val predictions = contract.labels.zip(scores) { label, score -> Prediction(label, score / sum) }
        return predictions.sortedByDescending { it.probability }
    }
}
