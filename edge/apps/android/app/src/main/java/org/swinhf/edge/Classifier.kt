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

/** The bytes (height, width, 3) of a picture that the program sees. */
fun seen(picture: Picture, contract: Contract): ByteArray =
    fit(picture, contract.height, contract.width, contract.cropPct, contract.filter)

/** Bytes (height, width, 3) as the program takes them. */
fun input(pixels: ByteArray, contract: Contract): EValue {
    val (height, width) = contract.height.toLong() to contract.width.toLong()
    return EValue.from(
        if (contract.takesBytes) Tensor.fromBlobUnsigned(pixels, longArrayOf(1, height, width, 3))
        else Tensor.fromBlob(toPlanes(pixels), longArrayOf(1, 3, height, width))
    )
}

/** Every class with its probability, the most probable first; and what speaks for that one, if the program tells. */
class Classification(val predictions: List<Prediction>, val heat: Heat?)

/** The program in [programPath], which takes pictures as [contract] says. Not for two threads at once. */
class Classifier(programPath: String, private val contract: Contract) {
    private val module = load(programPath, contract)

    fun classify(picture: Picture): Classification {
        val pixels = seen(picture, contract)
        val outputs = module.forward(input(pixels, contract)).map { it.toTensor() }
        val logits = outputs[0].dataAsFloatArray
        val largest = logits.max()
        val scores = logits.map { exp((it - largest) / contract.temperature) }
        val sum = scores.sum()
        val predictions = contract.labels.zip(scores) { label, score -> Prediction(label, score / sum) }
        val heat = if (contract.explains) heat(outputs[1], logits.indexOfFirst { it == largest }, pixels) else null
        return Classification(predictions.sortedByDescending { it.probability }, heat)
    }

    private fun heat(maps: Tensor, number: Int, pixels: ByteArray): Heat {
        val (rows, columns) = maps.shape().takeLast(2).map { it.toInt() }
        return heatOf(maps.dataAsFloatArray, number, rows, columns, pixels, contract.height, contract.width)
    }
}
