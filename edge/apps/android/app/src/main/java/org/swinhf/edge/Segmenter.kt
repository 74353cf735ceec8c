package org.swinhf.edge

import org.pytorch.executorch.Module

/** The program in [programPath], which says the class of each pixel. Not for two threads at once. */
class Segmenter(programPath: String, private val contract: Contract) {
    private val module = load(programPath, contract)

    /** The class of each pixel of a picture, as if it had this size. */
    fun segment(picture: Picture, height: Int, width: Int): ClassMap {
        val output = module.forward(input(seen(picture, contract), contract))[0].toTensor()
        val (rows, columns) = output.shape().takeLast(2).map { it.toInt() }
        if (contract.classMap) return classMapOf(output.dataAsUnsignedByteArray, rows, columns, height, width)
        return classMapOf(output.dataAsFloatArray, contract.labels.size, rows, columns, height, width)
    }
}
