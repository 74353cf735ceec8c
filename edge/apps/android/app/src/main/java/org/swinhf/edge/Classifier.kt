package org.swinhf.edge

import kotlin.math.exp
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

class Prediction(val label: String, val probability: Double)

/** The module of a program; refuses one of other classes than the contract's. */
fun load(programPath: String, contract: Contract): Module {
    val module = Module.load(programPath)
    check("labels" in module.getMethods()) { "model.pte must have a method `labels`; export it again with swin-hf" }
    val count = module.execute("labels").size
    check(count == contract.labels.size) {
        "contract.json must name the $count classes of model.pte, got ${contract.labels.size}; write the app again"
    }
    return module
}

/** A picture as the program takes it. */
fun input(picture: Picture, contract: Contract): EValue {
    val (height, width) = contract.height to contract.width
    val pixels = fit(picture, height, width, contract.cropPct, contract.filter)
    return EValue.from(
        if (contract.takesBytes) Tensor.fromBlobUnsigned(pixels, longArrayOf(1, height.toLong(), width.toLong(), 3))
        else Tensor.fromBlob(toPlanes(pixels), longArrayOf(1, 3, height.toLong(), width.toLong()))
    )
}

/** The program in [programPath], which takes pictures as [contract] says. Not for two threads at once. */
class Classifier(programPath: String, private val contract: Contract) {
    private val module = load(programPath, contract)

    /** Every class with its probability, the most probable first. */
    fun classify(picture: Picture): List<Prediction> {
        val logits = module.forward(input(picture, contract))[0].toTensor().dataAsFloatArray
        val largest = logits.max()
        val scores = logits.map { exp((it - largest) / contract.temperature) }
        val sum = scores.sum()
        val predictions = contract.labels.zip(scores) { label, score -> Prediction(label, score / sum) }
        return predictions.sortedByDescending { it.probability }
    }
}
